{# Rows that share a key. Unique over exactly these columns, or the test fails. #}
{% test unique_key(model, columns) %}
select {{ columns | join(', ') }} from {{ model }} group by {{ columns | join(', ') }} having count(*) > 1
{% endtest %}

{# Rows without a part of their key. #}
{% test key_not_null(model, columns) %}
select {{ columns | join(', ') }} from {{ model }} where ({{ columns | join(', ') }}) is null
    or not (({{ columns | join(', ') }}) is not null)
{% endtest %}
