"""`python -m diffusion_cli` is `dcli`."""

import sys

from diffusion_cli.cli import main

sys.exit(main())
