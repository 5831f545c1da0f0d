"""Other people's programs and Tiltyard on the same model and data; `python -m benchmarks.agree --help`."""
