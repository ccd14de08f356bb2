"""torch and scikit-learn's k-means only: schedule, samplers, moments, mixtures, subset search, seeds."""
