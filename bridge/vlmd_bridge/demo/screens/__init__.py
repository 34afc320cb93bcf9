"""The screens the demo frames show, one module for each family of applications."""
