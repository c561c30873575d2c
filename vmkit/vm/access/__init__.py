"""Getting into a guest: who may, by which way, and copying files both ways."""
