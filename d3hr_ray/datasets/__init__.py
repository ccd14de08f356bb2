"""Image sources: from files of any supported format to rows {image_id, image bytes, label}, and their decoding."""
