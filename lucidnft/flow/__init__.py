"""The maths of the straight path x_t = (1 - t) x_0 + t noise.  Pure torch: no models, no devices, no config."""
