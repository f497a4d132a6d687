"""What happens to every call, whatever its method: accepting, refusing, statuses, the access log and traces."""
