"""Restore a photograph or a folder of them with a trained policy or with the base that ships.

    python sample.py --input photos --output_dir restored --checkpoint runs/nft --upscale 4

Exit status: 0 when every image was restored or skipped, 1 when some failed, 2 when nothing was started.
"""

import sys

from lucidnft.sample.command import main

if __name__ == "__main__":
    sys.exit(main())
