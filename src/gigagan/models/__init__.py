"""The networks: layers, attention, text, generator, discriminator, and the frozen ones of others."""
