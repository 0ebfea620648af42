"""Reports of trainings: what a model finds beside the truth, as one HTML page."""
