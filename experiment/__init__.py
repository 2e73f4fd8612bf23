"""`make wikipedia`: a pre-trained model learns to search real passages, from a declaration in YAML."""
