"""Classification: rows with classes, the models that tell them apart, and how well these do."""
