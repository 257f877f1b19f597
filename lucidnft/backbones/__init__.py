"""Everything that knows a particular network.  The only package that imports diffusers or peft."""
