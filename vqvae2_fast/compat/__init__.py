"""Drop-in modules for checkpoints and code written for other packages: import the one you need."""
