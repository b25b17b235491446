#include <algorithm>
#include <iostream>
#include <string>

int main() {
    std::string a, b, sum;
    std::cin >> a >> b;
    int carry = 0;
    for (size_t at = 0; at < std::max(a.size(), b.size()) || carry; at++) {
        if (at < a.size()) carry += a[a.size() - 1 - at] - '0';
        if (at < b.size()) carry += b[b.size() - 1 - at] - '0';
        sum += char('0' + carry % 10);
        carry /= 10;
    }
    std::reverse(sum.begin(), sum.end());
    std::cout << sum << '\n';
}
