"""What a patch can be applied to. Each target finds its images (running copies of code) and the guests on them."""
