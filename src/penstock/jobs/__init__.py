"""The files of a batch job: requests in, answers out, and what lets a job go on where it stopped. No torch."""
