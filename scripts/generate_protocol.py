"""Called by `scripts/generate_protocol`; the work is in the package `protocol_gen` beside it."""

import sys

from protocol_gen.main import main

sys.exit(main())
