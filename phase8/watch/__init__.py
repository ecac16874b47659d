"""Events -> people: view, wording, console, plots, report, Weights & Biases."""
