"""Moving many VMs: emptying a host, and evening several out."""
