"""What is compared with what, and which goal that decides."""
