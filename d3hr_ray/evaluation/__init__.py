"""What a distilled set is worth: students trained on it from scratch, tested on real images, beside baselines."""
