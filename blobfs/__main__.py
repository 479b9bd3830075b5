import sys

from blobfs.cli import main

sys.exit(main())
