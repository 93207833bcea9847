"""An adversarial autoencoder for Statewise."""
