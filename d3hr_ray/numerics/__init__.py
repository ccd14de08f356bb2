"""Pure torch: schedule, DDIM, moments, subset scores and search, seeds. Nothing here knows Ray, files or images."""
