from coloctl.api.pair import pair as pair

__version__: str
