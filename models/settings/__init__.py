"""What a study says about images, metrics, opponents and distillation, readable without torch."""
