"""Floor 1: images. The store on this machine, the builder of the micro guest, importing, and placing on a host."""
