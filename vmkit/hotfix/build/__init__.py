"""What two builds of a program differ in, and a patch that brings it into the older one while it runs. x86-64 only."""
