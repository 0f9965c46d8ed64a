"""Postrider at work: a sample CRM, a real daemon, and receivers that verify and count."""
