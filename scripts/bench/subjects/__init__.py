"""What is measured; each function runs in the environment of its package."""
