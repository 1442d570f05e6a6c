"""The playground in the browser and the HTTP service: `pip install 'vqvae2_fast[serve]'`."""
