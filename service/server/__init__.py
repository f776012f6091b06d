"""What a server does beside answering requests: background work and logs."""
