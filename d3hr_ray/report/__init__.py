"""What a run shows people: tables, contact sheets, normality."""
