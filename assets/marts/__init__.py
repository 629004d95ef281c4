"""What analysts read: the relations of schema `analytics`, made by dbt."""
