"""Programs that measure. They assert nothing about time: figures are for people to judge."""
