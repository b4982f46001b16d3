"""SMB by Samba's smbd, run beside the worker: its configuration, and the process that starts one for each connection."""
