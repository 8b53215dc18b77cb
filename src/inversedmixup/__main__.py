"""``python -m inversedmixup``."""

from inversedmixup.cli import main

raise SystemExit(main())
