"""What is shown to people: tables, plots, contact sheets, the page of a run, its status."""
