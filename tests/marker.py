"""What tests put into files; found anywhere but in a file under a mount it is a leak."""

PLAINTEXT_MARKER = b"blobfs-plaintext-marker-5b2f7c0e9d41"
