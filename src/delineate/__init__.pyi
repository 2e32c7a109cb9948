"""The public names for type checkers: `__init__.py` imports them when they are first used."""

from delineate.data.dataset import open_dataset as open_dataset
from delineate.errors import DelineateError as DelineateError
from delineate.notebook import segment as segment
from delineate.prompts.prompt import Prompt as Prompt
from delineate.prompts.vocabulary import Vocabulary as Vocabulary
from delineate.proposals.proposals import Proposals as Proposals
from delineate.proposals.target import Outcome as Outcome
from delineate.proposals.target import TargetProposals as TargetProposals
from delineate.scans.reading import read_scan as read_scan
from delineate.scans.scan import Scan as Scan
from delineate.segmenter import Segmenter as Segmenter

__version__: str
