#include <algorithm>
#include <iostream>
#include <vector>

int main() {
    std::ios::sync_with_stdio(false);
    std::cin.tie(nullptr);
    int n, number;
    std::cin >> n;
    std::vector<int> ends;
    while (std::cin >> number) {
        auto place = std::lower_bound(ends.begin(), ends.end(), number);
        if (place == ends.end()) ends.push_back(number);
        else *place = number;
    }
    std::cout << ends.size() << '\n';
}
