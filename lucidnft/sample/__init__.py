"""The command that restores files: `sample.py` and `lucidnft-sample`."""
