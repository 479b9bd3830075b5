"""blobfs: an Azure Blob container as a Linux file system, encrypted on the client."""

__version__ = "0.1.0"
