"""Facts about a host: observed, never judged. Every reader here is a pure function of what was captured."""
