"""What several tests share: small networks, option files, pictures and folders."""
