# Turn a table `article,cents` into a Python module.
echo '"""Generated from prices.csv; do not edit."""'
echo
echo "CENTS = {"
{
    read -r _header
    while IFS=, read -r article cents; do
        echo "    \"$article\": $cents,"
    done
} <"$1"
echo "}"
