"""The default engine: executes a checkpoint's own Hugging Face submodules in named pieces."""
