"""Pages, charts and tables about runs: of any run, of several side by side, and the demo's."""
