"""Makes the zoo of hostile images importable: `import hostile`."""

import sys
from pathlib import Path

# pytest runs with --import-mode=importlib, which adds nothing to the path.
sys.path.insert(0, str(Path(__file__).parent))
