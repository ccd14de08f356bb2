"""What a distilled set is worth: students trained on it and tested on real images, beside baselines; its scores."""
