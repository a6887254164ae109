"""Functions on critic outputs; they know no network and no environment. A high logit means real, or expert."""
