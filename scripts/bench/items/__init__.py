"""What the GPU benchmark measures: in each file `measure`, which yields its rows."""
